"""Tests beside other implementations; a package, so that its conftest has a name of its own."""

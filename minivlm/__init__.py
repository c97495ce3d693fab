"""minivlm: the vision-language training recipe, written out by hand in PyTorch."""

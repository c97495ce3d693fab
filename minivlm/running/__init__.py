"""What every script needs and no paper mentions; a first reading may skip this room.

    options       builds the command line of a script from its Config, and checks the values
    run           keeps the run folder: options, log, checkpoints; a kill loses nothing
    checkpoint    writes checkpoints, reads them, and restores a run bit for bit
    workers       makes batches in worker processes, ahead of the step that reads them
    machine       picks the device and the number format, seeds, and describes the machine
    files         reads files that others have written, with limits and clear errors
"""

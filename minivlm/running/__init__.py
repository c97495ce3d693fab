"""What every script needs and no paper mentions; a first reading may skip this room.

    options.py     builds a script's command line from its Config, and checks the values.
    run.py         keeps the run folder: options, log, checkpoints; a kill loses nothing.
    checkpoint.py  writes checkpoints, reads them, and restores a run bit for bit.
    processes.py   lets several processes, one for each GPU, train one model.
    workers.py     makes batches in worker processes, ahead of the step that reads them.
    machine.py     picks device and number format, seeds, and describes the machine.
    files.py       reads files that others have written, with limits and clear errors.
"""

"""Judging hostile programs: what may not be trusted, and who trusts what.

    judge       `Sandbox`, in the pipeline's process: hands out jobs, reads reports, holds no foreign code.
    zygote      a process inside the tier's walls; forks the two below for each job and ends them. It never reads a job.
    examiner    runs the tests, whose authors are trusted, and alone holds what they expect.
    program     the hostile one, in a process and scratch directory of its own. It gets calls and returns values.

Examiner and program share two pipes, and JSON flows there that is read as data (`values`); nothing is unpickled. The
program is forked before its job is read, so its memory holds no trace of the tests, nor of earlier jobs. What it may
see of them comes through the pipe: imports, classes, and helpers that no test reads.

What no wall keeps out: in the Landlock tier a program can tell from an error whether a path exists, and so whether a
process does; and tests that take the program's word (`assert valid(x)`, `decode(encode(x)) == x`) can be pleased.
"""

"""Judging untrusted programs: the parts, and what each of them is trusted with.

    judge       `Sandbox`, in the pipeline's process: hands out jobs, reads reports, runs no foreign code.
    zygote      an isolated process; forks the two below for each job and ends them. It never reads a job.
    examiner    runs the tests, whose authors are trusted. Only it knows the expected values.
    program     the untrusted program, in a process and scratch directory of its own. It gets calls and returns values.
    script      an untrusted program that reads standard input and prints; a process for each test, and no examiner.

Examiner and program exchange JSON over two pipes, which is read as plain data (`values`); nothing is unpickled. Plain
data that both sides have stays alike (`heap`); objects of the program's have stand-ins in the tests (`stand_ins`). The
program is forked before its job is read, so its memory holds no trace of the tests, nor of earlier jobs. What it may
see of the tests comes through the pipe: imports, classes, and helpers that no test reads.

A script sees the input of one test. What it should print never leaves the judge, which reads its output up to a limit.

Without bubblewrap, the zygote makes its scratch directory the root of all paths; where the kernel refuses that,
programs cannot open files at all. Either way no error tells whether a file exists.

Known limit: a program can pass tests that rely on its own judgement (`assert valid(x)`, `decode(encode(x)) == x`).
"""

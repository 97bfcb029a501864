"""Judging hostile programs: what may not be trusted, and who trusts what.

    judge       `Sandbox`, in the pipeline's process: hands out jobs, reads reports, holds no foreign code.
    zygote      a process inside the tier's walls; forks the two below for each job and ends them. It never reads a job.
    examiner    runs the tests, whose authors are trusted, and alone holds what they expect.
    program     the hostile one, in a process and scratch directory of its own. It gets calls and returns values.

Examiner and program share two pipes, and JSON flows there that is read as data (`values`); nothing is unpickled. All but
the judge are forked before a job is read, so their memory holds no trace of it, nor of an earlier one.
"""

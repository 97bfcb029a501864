"""Programs judged by their tests: `scorer` finds the program in an answer, `code_tests` the tests of a prompt."""

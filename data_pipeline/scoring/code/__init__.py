"""Programs judged by their tests: `programs` finds the program in an answer, `code_tests` the tests of a prompt."""

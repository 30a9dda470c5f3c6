"""The functions of the command line's verbs. Each imports torch only if it needs it."""

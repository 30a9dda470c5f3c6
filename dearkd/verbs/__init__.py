"""What each verb of the command line does, as a function of its arguments. Torch is imported where a verb needs it."""

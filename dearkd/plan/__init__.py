"""The plan of what is trained: scales, methods as data, runs, paths and cost. Needs the standard library and yaml."""

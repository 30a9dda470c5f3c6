"""What is to be trained: scales, methods as data, runs, their places and their cost. Standard library and yaml."""

"""The command line: the headless twin of every screen. stdout carries data, stderr messages."""

"""The command line of pfld-edge."""

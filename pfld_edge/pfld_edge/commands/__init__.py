"""One file a command; each wires the stages together and holds no logic of its own."""

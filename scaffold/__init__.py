"""A project of your own, made of this one: `make new NAME=flowers`, or `python -m scaffold flowers`."""

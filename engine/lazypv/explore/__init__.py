"""The explorer: small worlds, every order that matters, and the shortest story of one that breaks something.

It drives the very texts that the live clock drives. Nothing of a world that it builds is ever saved, for its keys
repeat.
"""

"""Iterating over what a generator yields in another process.

The items travel through a ring in shared memory. Who waits for the other is rung at a socket.
"""

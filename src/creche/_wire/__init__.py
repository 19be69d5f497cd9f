"""What travels between parent and child, as pure functions over bytes.

Nothing in here reads or writes: :mod:`._framing` cuts a byte stream into frames, :mod:`._pickling`
turns objects into the sections of a frame and back, :mod:`._outcomes` says how a process ended.
"""

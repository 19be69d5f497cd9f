"""Channels between processes: streams of objects, of which any process can hold an end."""

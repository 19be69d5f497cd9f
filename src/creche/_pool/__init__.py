"""Warm workers.

:mod:`._process_pool` is the public face. :mod:`._scheduler` decides which call runs where and how
many workers there are, without doing either; :mod:`._worker` is one worker as its pool sees it,
:mod:`._channel` the connection to it, and :mod:`._serving` what runs in it. Everything but the
last runs in the event loop that the pool belongs to, so nothing in here needs a lock.
"""

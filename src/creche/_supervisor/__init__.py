"""Processes that are kept alive, in the words of Erlang/OTP.

``_supervisor`` is what users hold, ``_engine`` is what an open supervisor consists of, ``_mending``
brings back what has failed, ``_lives`` and ``_nested`` are one life of a child each. What can be
decided without processes (``_states``, ``_strategies``, ``_intensity``, ``_backoff``) is.
"""

"""creche's own start method: children are forks of a small server made for nothing else.

``_servers``, ``_client``, ``_server_process``, ``_popen`` and ``_context`` run in the application,
``_serving`` and ``_preloading`` in the server, ``_spare`` in what it forks. ``_protocol`` and
``_surroundings`` are what travels between them.
"""

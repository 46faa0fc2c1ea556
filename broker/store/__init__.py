"""Where state lives: one store over the Redis protocol, embedded or external.

    commit.py     THE transaction, and the store as the house sees it (`Store`)
    values.py     what goes in, what is answered
    line.py       the hot connection           functions.py, functions.lua   the server's half
    connect.py    from a URL to a socket       names.py   every key          health.py   what the server says of itself
    embedded.py   the private Valkey           binary.py  finding its server          folder.py   its folder and locks

Stands on model and config.  Nobody else speaks to the server.
"""

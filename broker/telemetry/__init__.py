"""What the broker says of itself: traces, metrics, logs.  Never a token, never a key (promise 6).

One file each.  Stands on nothing; every room may use it.
"""

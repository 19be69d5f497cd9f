"""Where the state of what processes share lives: in the process that made it.

Only somebody who hears of deaths can release what a dead process held, and only somebody who keeps
the list of those who wait can take one off that list. So the owner keeps both, as plain objects,
and every other process has one connection to it, whose end says that it is dead.
"""

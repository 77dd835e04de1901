"""The adapters of a worker: which are on its host and in its device slots, and which legs run on them.

`slots` decides who gets a slot; `pool` loads and unloads, and is what a leg holds its version by; `files`
keeps files in place; `orders` carries out what the router wants held.
"""

"""The manifest: its schema, how it is loaded, and the plan of processes it makes on one machine.

`load.load_manifest(path)` gives the frozen `schema.Manifest`; `plan.plan_local` the processes.
"""

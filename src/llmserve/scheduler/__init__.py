"""Who is next, and whether there is room. Pure: state and a clock in, decisions out.

admission.AdmissionQueue puts the parts together: flow (the queue of a tenant), ordering (within a
flow), fairness (between flows), budgets (what a dispatched request holds).
"""

"""Who is next, and whether there is room. Pure: state and a clock in, decisions out.

admission.AdmissionQueue puts the parts together: flows (all that waits, a flow for each tenant), ordering
(within a flow), fairness (between flows), budgets (what a dispatched request holds), refusals (what those
are told who get no place).
"""

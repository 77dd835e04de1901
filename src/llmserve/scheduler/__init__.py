"""Who is next, and whether there is room. Pure: state and a clock in, decisions out.

admission.AdmissionQueue joins the parts: flows (all that waits, one flow for each tenant), ordering (within
a flow), fairness (between flows), budgets (what a dispatched request holds), refusals (what a rejected
client receives).
"""

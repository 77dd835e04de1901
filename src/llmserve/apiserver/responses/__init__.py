"""Answers of `/v1/responses` that are kept: continued by `previous_response_id`, made in the background,
cancelled, and found by every apiserver that shares the store."""

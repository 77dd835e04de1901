"""Every metric of LLMServe, defined once: one module with one class for each role."""

"""Words of the domain. Standard library only; imports nothing else of LLMServe."""

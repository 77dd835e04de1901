"""Where stored blocks lie: one module for each medium. `base` is the contract of those below DRAM."""

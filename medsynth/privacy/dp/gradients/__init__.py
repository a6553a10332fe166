"""The gradients of patients: their clipped sum from one backward pass, and what that costs."""

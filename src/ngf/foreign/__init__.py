"""A model that somebody else trained: its weights, its network, its images; and back again."""

"""What T² does to weights and how it picks experts: SVF, the expert bank, dispatch."""

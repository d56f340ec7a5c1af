"""What is learned: networks, the terms of the objective, one local step, and the disease map."""

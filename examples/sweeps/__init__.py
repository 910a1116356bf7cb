"""What examples/sweep.py is made of: the plan of the cells, and the jobs that run them."""

"""What examples/sweep.py is made of: the plan of the cells, the jobs that run them, and what is printed."""

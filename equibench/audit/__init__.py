"""What is asked of records afterwards: find, compare, explain, verify; and of files and tasks: doctor, leakage."""

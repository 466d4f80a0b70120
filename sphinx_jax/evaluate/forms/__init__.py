"""Files of benchmarks in the forms that people have: opened, told apart, and the pictures in them."""

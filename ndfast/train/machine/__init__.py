"""Device and processes by Accelerate, memory on the CPU, bars in the terminal."""

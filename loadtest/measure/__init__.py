"""What is measured: delays, counts over time, CPU and memory, clocks."""

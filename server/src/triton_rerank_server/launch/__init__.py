"""What Triton is started with: the installation, its environment, its folder, its ports, and the child process."""

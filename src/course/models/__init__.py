"""What learns: ``nn.Module`` classes only, one idea a file."""

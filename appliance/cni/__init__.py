"""Pod networking: the supervisor's side of our CNI plugin. The pure core; nothing here acts."""

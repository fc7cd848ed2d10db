"""What only TorchServe needs: its polling for replies, and the names that the worker and the launcher share."""

"""What `midefense doctor` looks at: the machine, the data and the store. Nothing is unpickled, fetched or written."""

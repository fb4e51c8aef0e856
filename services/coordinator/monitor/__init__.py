"""What hosts see of themselves and their VMs, written into the observed fields of entities."""

"""What `edgequant doctor` looks at: functions that return findings; none makes a run or loads a model. And `sync`."""

// Command provisioner gives the bed's claims their volumes: a folder below the node's own folder on the host, served as a
// `local` volume of that node. Deleting the claim deletes the folder and what is in it.
//
// It runs beside the control plane and not in a pod, because all nodes' folders are on one host; so it needs no helper
// pods, which is why it exists beside the provisioners of real clusters.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const name = "althing.dev/bed"

type provisioner struct {
	// Folder of the bed; a node's volumes lie in <bed>/<node>/volumes.
	bed string
}

func (p provisioner) folder(node, volume string) string {
	return filepath.Join(p.bed, node, "volumes", volume)
}

// Provision is called when the scheduler has chosen a node for the claim's pod (WaitForFirstConsumer).
func (p provisioner) Provision(_ context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	if o.SelectedNodeName == "" {
		return nil, controller.ProvisioningFinished, fmt.Errorf("no node was selected: the storage class must have volumeBindingMode WaitForFirstConsumer")
	}
	folder := p.folder(o.SelectedNodeName, o.PVName)
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return nil, controller.ProvisioningNoChange, err
	}
	// Again, because the process's umask has had its say; pods run as users of their own choice.
	if err := os.Chmod(folder, 0o777); err != nil {
		return nil, controller.ProvisioningNoChange, err
	}
	mode := corev1.PersistentVolumeFilesystem
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *o.StorageClass.ReclaimPolicy,
			AccessModes:                   o.PVC.Spec.AccessModes,
			VolumeMode:                    &mode,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: o.PVC.Spec.Resources.Requests[corev1.ResourceStorage]},
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: folder}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{o.SelectedNodeName},
				}},
			}}}},
		},
	}, controller.ProvisioningFinished, nil
}

// Delete is called for a released volume whose reclaim policy is Delete.
func (p provisioner) Delete(_ context.Context, volume *corev1.PersistentVolume) error {
	if volume.Spec.Local == nil {
		return fmt.Errorf("volume %s is not a local one", volume.Name)
	}
	// Only ever below the bed, whatever the object says.
	inside, err := filepath.Rel(p.bed, volume.Spec.Local.Path)
	if err != nil || !filepath.IsLocal(inside) || filepath.Base(inside) != volume.Name {
		return fmt.Errorf("volume %s claims the folder %s, which is not its own", volume.Name, volume.Spec.Local.Path)
	}
	return os.RemoveAll(volume.Spec.Local.Path)
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "credentials")
	bed := flag.String("bed", "", "folder of the bed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig, *bed); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig, bed string) error {
	if !filepath.IsAbs(bed) {
		return fmt.Errorf("--bed=%q is not an absolute path", bed)
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("--kubeconfig=%q: %w", kubeconfig, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	controller.NewProvisionController(ctx, client, name, provisioner{bed: bed}, controller.LeaderElection(false)).Run(ctx)
	return nil
}
